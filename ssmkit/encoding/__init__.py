"""Trees of data as JSON and plain arrays: never pickled, never code.

`encode` turns nested containers, arrays, dates, models and records into a JSON value and a list
of numpy arrays; `decode` builds the same tree again. Classes and functions are written by name.
"""

from ssmkit.encoding.decode import decode as decode
from ssmkit.encoding.encode import Encoded as Encoded
from ssmkit.encoding.encode import encode as encode
