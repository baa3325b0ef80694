"""Decision rules: from a model's logits to a class, learned by the metric on predictions that are held out."""
