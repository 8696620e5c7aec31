"""Algebra on the factored deltas of one module: exact, or truncated with the error stated.

- `deltas`: the `Delta`, sums, inner products, norms.
- `decompose`: the thin SVD, truncation to an adapter's rank and scale.
- `squares`: both by eigenvectors of Gram matrices, for large deltas whose singular values these can hold.
- `basis`: one basis for the output (or input) space of many deltas, and each delta's coordinates in it.
- `gauge`: signs and rotations of factors that leave the delta as it is.
- `similarity`: how alike two adapters are.
- `blocks`: functions of the entries of dense deltas, a block at a time.

Everything is computed in float64 and handed out in the precision that came in. Only `blocks` forms dense deltas. With
equal singular values apart, results depend on the order of deltas and on the number of threads by rounding alone.
"""
