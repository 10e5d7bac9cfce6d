"""What an update gives away by linear algebra alone, without a search."""
