"""Templates' bytes on this host: partial files, publishing, one fetch for each content."""
