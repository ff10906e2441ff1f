"""Images and their photon counts: the published archive, the Drive, files of any format, memory-mapped splits."""
