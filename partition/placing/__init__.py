"""Places sub-models on devices within their memory and energy."""
