"""A page in the browser on which one can use the models of a checkout, through the Python API."""
