"""How fast the pipeline is, against what people use today and against the machine: `make bench`."""
