"""A fit as data: settings, weights, checksum, slots and files; training one, finding one, the cells it knows."""
