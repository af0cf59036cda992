"""Images, text and labels, without torch."""
