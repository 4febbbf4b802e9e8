"""What models are given of a picture beside caption and class: from examples in training, from files in sampling."""
