"""From verdicts to rewards: schedules say who meets, the tally counts games, ratings fit scores, rewards shape them."""
