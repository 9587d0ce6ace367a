"""What the database must hold before anything moves: pointer columns, size trigger, indexes, functions, bookkeeping."""
