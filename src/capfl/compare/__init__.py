"""Several methods, codecs and partitions beside each other, over seeds: `capfl compare`."""
