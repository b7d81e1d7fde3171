"""Named methods: every YAML file here is one; its name is the name of the method."""
