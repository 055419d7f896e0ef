"""What judges are trained and tested on: items of known worth, and the verifiable reward of a judge's reply."""
