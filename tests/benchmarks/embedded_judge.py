"""What the untrained embedded judge can and cannot do, on sentences of film reviews rated by humans.

    python -m tests.benchmarks.embedded_judge                 # about six minutes on two cores
    python -m tests.benchmarks.embedded_judge --pairs 40      # a look

Pairs of sentences whose mean human ratings differ by at least one point (of -4..4), drawn with a fixed seed. Two ways to
judge them, both by reading label probabilities: each sentence alone for sentiment (the default of the package), and the
pair as a choice between A and B in both orders. Right means the sentence with the higher rating; intervals are Wilson's.
"""

from __future__ import annotations

import argparse
import math
import random
import time

from mrjudge_reward import Choice, Group, Judge, JudgeConfig
from mrjudge_reward.scoring.tally import hard_winner, position_consistency
from recipes.data.reviews import Review, load_reviews


def draw_pairs(count: int, seed: int) -> list[tuple[Review, Review]]:
    """(better, worse) pairs of different sentences."""
    rng = random.Random(seed)
    reviews = load_reviews()
    pairs: list[tuple[Review, Review]] = []
    while len(pairs) < count:
        one, two = rng.sample(reviews, 2)
        if abs(one.rating - two.rating) >= 1:
            pairs.append((one, two) if one.rating > two.rating else (two, one))
    return pairs


def share(right: int, of: int) -> str:
    """A share with its 95 % Wilson interval."""
    z, p = 1.96, right / of
    centre, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return f"{p:.3f} [{(centre - half) / (1 + z * z / of):.3f}, {(centre + half) / (1 + z * z / of):.3f}]"


def main() -> None:
    """Judge the pairs both ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pairs = draw_pairs(args.pairs, args.seed)
    groups = [Group.of("Write a sentence about a film.", [a.text, b.text], str(i)) for i, (a, b) in enumerate(pairs)]
    alone = JudgeConfig().build()
    choice = Judge(alone.engine, Choice(), schedule="all_pairs", verdict="logprobs")
    print(f"{len(pairs)} pairs, seed {args.seed}\n{'judged':<34}{'right [95 % interval]':<28}{'seconds':>8}")
    for name, judge in (("alone, sentiment (the default)", alone), ("as a choice, both orders", choice)):
        started = time.perf_counter()
        judgements = judge.judge(groups)
        seconds = time.perf_counter() - started
        right = sum(judgement.best == 0 for judgement in judgements)
        print(f"{name:<34}{share(right, len(pairs)):<28}{seconds:>8.0f}")
    agreeing, mirrored = zip(*(position_consistency(judgement.played) for judgement in judgements), strict=True)
    right_twice = sum(all(hard_winner(played) == 0 for played in judgement.played) for judgement in judgements)
    print(f"{'as a choice, right in both orders':<34}{share(right_twice, len(pairs))}")
    print(f"{'as a choice, position consistency':<34}{share(sum(agreeing), sum(mirrored))}")


if __name__ == "__main__":
    main()
