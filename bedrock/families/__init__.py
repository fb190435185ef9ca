"""One file for each family of text models: its bodies of InvokeModel, and their inverses."""
