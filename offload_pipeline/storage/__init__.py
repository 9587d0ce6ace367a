"""Objects: their keys, the store that holds them, and how an object is known to be durable."""
