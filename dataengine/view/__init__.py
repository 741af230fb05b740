"""What a person looks at in a browser: the sample card, shared by the report and the viewer, and the viewer itself."""
