"""The data package that both programs stand on; importing it starts nothing."""
