"""What can be seen inside the model while it decodes: direct sources, and the layers' readings."""
