"""Networks, losses, data and fitting: data in, run bundle out."""
