"""The command `autodeploy`."""
