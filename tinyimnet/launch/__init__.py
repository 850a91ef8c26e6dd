"""Start training runs on a cluster, watch them, end them."""
