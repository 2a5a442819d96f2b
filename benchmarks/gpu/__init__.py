"""What only a GPU can show: a list of checks and measurements that one machine goes through in minutes."""
