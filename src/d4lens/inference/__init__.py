"""The way of an image: sources in, table or picture out, from the command line, from Python and from MLflow."""
