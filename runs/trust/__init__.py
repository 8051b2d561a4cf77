"""Whether it can be trusted: fuzzers, kills, hostile texts and servers."""
