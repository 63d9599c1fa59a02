"""Experts written as loops over the rows that were routed to them, captured as one expression over all rows.

Which rows an expert gets depends on values, and export follows none. But such code does the same with every row: it
picks rows, puts them through an expert, weights them and adds them back. So while a model is captured,

* picking rows by a condition on tokens yields *all* rows, in their order, and remembers the condition;
* adding rows back adds those that meet the condition, and nothing elsewhere;
* a loop over the experts that were hit runs once, for "the expert of this row", as long as the code does not ask which
  expert that is; where it compares the number, once for each side; where it needs the number itself, once for each;
* ordering rows by expert and cutting them into one piece for each leaves them where they are, and remembers which.

`mode.RoutedRows` is the torch function mode that does this; `values` has what the model's code gets in the place of
data that nobody knows yet.
"""

from .mode import RoutedRows

__all__ = ["RoutedRows"]
