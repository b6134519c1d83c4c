"""The pages: each is a function of a visit. It asks the node, and has a template write the answer."""
