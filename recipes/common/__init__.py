"""What several recipes share: configs, work that can be resumed, means with their intervals."""
