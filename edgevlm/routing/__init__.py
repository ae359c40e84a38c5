"""Who answers: how far an answer may be trusted, and what is to be done where it may not."""
