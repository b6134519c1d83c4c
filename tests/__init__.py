"""The tests. A test is a sentence: given, when, then."""
