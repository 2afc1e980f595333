"""Search of recorded texts: an index of passages beside the journal, and the comparison of texts.

FTS5 is not used: what it deletes stays in its files until they are merged, and a deletion here has
to be final. An own table is the same in both databases.
"""
