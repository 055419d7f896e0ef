"""What counts as a verdict: a table of judge outputs with the reason beside each.

Anything that is not plainly an offered label in the last closed marker after closed reasoning has no verdict.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.messages import final_answer
from mrjudge_reward.prompting.formats import (
    SENTIMENT,
    Choice,
    Format,
    PairScores,
    Ranking,
    Score,
    grade_scale,
    read_reply,
)
from mrjudge_reward.prompting.parsing import after_thinking
from mrjudge_reward.types import Grades, NoVerdict, Preference, RankOrder, Reply, Tie, Usage

CHOICE, RANKING, PAIR, SCORE = Choice(), Ranking(), PairScores(), Score()
TIED = Choice(labels=("A", "B"), tie_label="C")
BRACKETS = Choice(answer_open="[[", answer_close="]]")
BOXED, LINE = Choice(answer_open="\\boxed{", answer_close="}"), Choice(answer_open="Answer:", answer_close="")
BOXED_ORDER, LINE_ORDER = (
    Ranking(answer_open="\\boxed{", answer_close="}"),
    Ranking(answer_open="Order:", answer_close=""),
)
GRADED = Ranking(labels=("A", "B"), answer_open="[[", answer_close="]]")
AMBIGUOUS, NAMED = Choice(labels=("a", "A", "(b)", "Option b")), Choice(labels=("Response 1", "Response 2"))

FIRST, SECOND, THIRD = ("chose", 0), ("chose", 1), ("chose", 2)
TIE = ("tie",)
NONE, OPEN, UNCLOSED = ("failed", "no verdict"), ("failed", "unclosed thinking"), ("failed", "unclosed verdict")
STRANGE, COUNT, CARELESS = ("failed", "off-menu label"), ("failed", "wrong count"), ("failed", "malformed marker")


def scored(*values):
    return ("scored", *map(float, values))


def ranked(*tiers):
    return ("ranked", *tiers)


def told(outcome):
    """An outcome in the words of the table."""
    match outcome:
        case NoVerdict(reason=reason):
            return ("failed", reason)
        case Tie():
            return TIE
        case Preference(probabilities_K=values, soft=False):
            assert sorted(values) == [0.0] * (len(values) - 1) + [1.0]
            return ("chose", values.index(1.0))
        case RankOrder(tiers=tiers, strengths=strengths):
            return ("ranked", *tiers, *(("by", strengths) if strengths else ()))
        case Grades(values_K=values, grades_K=grades):
            assert grades == tuple(((value, 1.0),) for value in values)
            return ("scored", *values)
    raise AssertionError(outcome)


TABLE = [
    # --- Choice: the plain case -------------------------------------------------------------------------------
    (CHOICE, 2, "<think>B is right.</think><answer>B</answer>", SECOND, "reasoning, then a label"),
    (CHOICE, 2, "<answer>A</answer>", FIRST, "no reasoning at all is allowed"),
    (CHOICE, 2, "<think></think><answer>A</answer>", FIRST, "empty reasoning"),
    (CHOICE, 16, "<answer>P</answer>", ("chose", 15), "the last of sixteen labels"),
    (CHOICE, 2, "<think>x</think>\n\n  <answer> B\t</answer>\n", SECOND, "white space around everything"),
    (CHOICE, 2, "<think>x</think><answer>\nB\n</answer>", SECOND, "newlines inside the answer"),
    (CHOICE, 2, "<think>x</think><answer>\r\nB\r\n</answer>", SECOND, "carriage returns inside the answer"),
    (CHOICE, 2, "<answer>B</answer> because it cites its source.", SECOND, "prose after the verdict"),
    (CHOICE, 2, "<answer>B</answer></answer>", SECOND, "a closing marker too many"),
    (CHOICE, 2, "```\n<answer>B</answer>\n```", SECOND, "a code fence around the marker"),
    (CHOICE, 2, "**<answer>B</answer>**", SECOND, "markdown around the marker"),
    (CHOICE, 2, "<think>答案是乙。</think>第二个更好。<answer>B</answer>", SECOND, "Chinese prose around the marker"),
    # --- Choice: whose verdict is it ----------------------------------------------------------------------------
    (CHOICE, 2, "<think>It says <answer>A</answer>.</think><answer>B</answer>", SECOND, "spoofed tag in the thinking"),
    (CHOICE, 2, "<think>It says <answer>A</answer>.</think> B.", NONE, "a tag in the thinking alone is no verdict"),
    (CHOICE, 2, "<think>Hm, <answer>A</think>B</answer>", NONE, "a tag opened in the thinking is not closed after it"),
    (CHOICE, 2, "It wrote '<answer>A</answer>'. <answer>B</answer>", SECOND, "a quote before the verdict is overruled"),
    (CHOICE, 2, "<answer>A</answer> No, wait: <answer>B</answer>", SECOND, "changed midway: the last one counts"),
    (CHOICE, 3, "<answer>A</answer><answer>B</answer><answer>C</answer>", THIRD, "changed twice"),
    (CHOICE, 2, "<answer>A</answer> or rather <answer>C</answer>", STRANGE, "off-menu last: no falling back"),
    (CHOICE, 2, "<answer>A</answer> hmm <answer></answer>", STRANGE, "empty last: no falling back"),
    (CHOICE, 2, "<answer>A</answer> hmm <answer>B", UNCLOSED, "unclosed last: no falling back"),
    (CHOICE, 2, "<answer>A</answer> hmm <ANSWER>B</ANSWER>", SECOND, "last in another case"),
    (CHOICE, 2, "I use <answer> tags. <answer>B</answer>", SECOND, "an earlier mention of the tag itself"),
    (CHOICE, 2, "<answer>A<answer>B</answer></answer>", SECOND, "nested answers: the last one opened"),
    # --- Choice: labels -----------------------------------------------------------------------------------------
    (CHOICE, 2, "<answer>a</answer>", FIRST, "lower case"),
    (CHOICE, 2, "<answer>(A)</answer>", FIRST, "round brackets"),
    (CHOICE, 2, "<answer>[A]</answer>", FIRST, "square brackets"),
    (CHOICE, 2, "<answer>**A**</answer>", FIRST, "bold"),
    (CHOICE, 2, "<answer>`A`</answer>", FIRST, "code"),
    (CHOICE, 2, "<answer>```\nA\n```</answer>", FIRST, "a code fence inside the answer"),
    (CHOICE, 2, "<answer>A.</answer>", FIRST, "a full stop"),
    (CHOICE, 2, "<answer>'A'</answer>", FIRST, "quotes"),
    (CHOICE, 2, "<answer>Response A</answer>", FIRST, "a word before the label"),
    (CHOICE, 2, "<answer>A, because it is right</answer>", STRANGE, "the reason inside the answer"),
    (CHOICE, 2, "<answer>A or B</answer>", STRANGE, "two labels"),
    (CHOICE, 2, "<answer>AB</answer>", STRANGE, "two labels run together"),
    (CHOICE, 2, "<answer>A\nB</answer>", STRANGE, "two labels on two lines"),
    (CHOICE, 2, "<answer>neither</answer>", STRANGE, "a word"),
    (CHOICE, 2, "<answer>1</answer>", STRANGE, "a number for a letter"),
    (CHOICE, 2, "<answer>C</answer>", STRANGE, "a label of a slot that was not shown"),
    (CHOICE, 2, "<answer>\u0410</answer>", STRANGE, "Cyrillic A"),
    (CHOICE, 2, "<answer>\uff21</answer>", STRANGE, "full-width A"),
    (CHOICE, 2, "<answer>\u0391</answer>", STRANGE, "Greek A"),
    (CHOICE, 2, "<answer>A\u0301</answer>", STRANGE, "A with a combining accent"),
    (CHOICE, 2, "<answer>\u200bA</answer>", STRANGE, "zero-width space"),
    (CHOICE, 2, "<answer>\ufeffA</answer>", STRANGE, "byte order mark"),
    (CHOICE, 2, "<answer>A\x00</answer>", STRANGE, "NUL byte"),
    (CHOICE, 2, "<answer>第一个</answer>", STRANGE, "Chinese for the first"),
    (CHOICE, 2, "<answer></answer>", STRANGE, "empty answer"),
    (CHOICE, 2, "<answer> \n </answer>", STRANGE, "blank answer"),
    (CHOICE, 2, "<answer>None</answer>", STRANGE, "None as a label"),
    (CHOICE, 2, "<answer>null</answer>", STRANGE, "null as a label"),
    (CHOICE, 2, "<answer>[Response A]</answer>", FIRST, "a word and brackets"),
    (CHOICE, 2, "<answer>**Response B**.</answer>", SECOND, "bold, a word and a full stop"),
    (CHOICE, 2, "<answer>Option: b</answer>", SECOND, "a colon and lower case"),
    (CHOICE, 2, "<answer>\\boxed{\\text{B}}</answer>", SECOND, "LaTeX in LaTeX"),
    (CHOICE, 2, "<answer>“B”</answer>", SECOND, "curly quotes"),
    (CHOICE, 2, '<answer>"B."</answer>', SECOND, "a full stop within quotes"),
    (CHOICE, 2, "<answer>{B}</answer>", SECOND, "braces"),
    (CHOICE, 2, "<answer>__B__</answer>", SECOND, "underlines"),
    (CHOICE, 2, "<answer>_Response B_</answer>", SECOND, "underlines around a word"),
    (CHOICE, 2, "<answer>**_B_**.</answer>", SECOND, "bold italics"),
    (CHOICE, 2, "<answer>\\(B\\)</answer>", SECOND, "an inline formula of LaTeX"),
    (CHOICE, 2, "<answer>\\(\\boxed{B}\\)</answer>", SECOND, "a box in an inline formula"),
    (CHOICE, 2, "<answer>\\[\\boxed{\\text{B}}\\]</answer>", SECOND, "a box in a displayed formula"),
    (CHOICE, 2, "<answer>\\[ Response B \\]</answer>", SECOND, "a word in a displayed formula"),
    (CHOICE, 2, "<answer>\\(B\\]</answer>", STRANGE, "a formula that is closed otherwise"),
    (CHOICE, 2, "<answer>\\(A\\) or \\(B\\)</answer>", STRANGE, "two formulas"),
    (CHOICE, 2, "<answer>_A_ _B_</answer>", STRANGE, "two underlined"),
    (CHOICE, 2, "<answer>B_</answer>", STRANGE, "half an underline"),
    (CHOICE, 2, "<answer>$B$</answer>", SECOND, "a formula"),
    (CHOICE, 2, "<answer>*candidate A*</answer>", FIRST, "italics"),
    (CHOICE, 2, "<answer>Label\nA</answer>", FIRST, "a word on a line of its own"),
    (CHOICE, 2, "<answer>not A</answer>", STRANGE, "negated"),
    (CHOICE, 2, "<answer>A?</answer>", STRANGE, "a question"),
    (CHOICE, 2, "<answer>A...</answer>", STRANGE, "it trails off"),
    (CHOICE, 2, "<answer>~~A~~</answer>", STRANGE, "struck out"),
    (CHOICE, 2, "<answer>(A) or (B)</answer>", STRANGE, "two in brackets"),
    (CHOICE, 2, '<answer>"A" "B"</answer>', STRANGE, "two in quotes"),
    (CHOICE, 2, "<answer>*A*, *B*</answer>", STRANGE, "two in italics"),
    (CHOICE, 2, "<answer>A and B</answer>", STRANGE, "both"),
    (CHOICE, 2, "<answer>Response</answer>", STRANGE, "the word without a label"),
    (CHOICE, 2, "<answer>ResponseA</answer>", STRANGE, "no space after the word"),
    (CHOICE, 2, "<answer>Responses A</answer>", STRANGE, "a plural"),
    (CHOICE, 2, "<answer>(A</answer>", STRANGE, "half a pair of brackets"),
    (CHOICE, 2, "<answer>[A)</answer>", STRANGE, "brackets that do not match"),
    (CHOICE, 2, "<answer>**A*</answer>", STRANGE, "emphasis that does not match"),
    (CHOICE, 2, "<answer>-A</answer>", STRANGE, "a minus"),
    (CHOICE, 16, "<answer>\u212a</answer>", STRANGE, "the Kelvin sign for K"),
    (AMBIGUOUS, 4, "<answer>a</answer>", FIRST, "as it stands, a small letter"),
    (AMBIGUOUS, 4, "<answer>**A**</answer>", SECOND, "case tells labels apart"),
    (AMBIGUOUS, 4, "<answer>(b)</answer>", THIRD, "as it stands, in brackets"),
    (AMBIGUOUS, 4, "<answer>Option b</answer>", ("chose", 3), "as it stands, with its word"),
    (AMBIGUOUS, 4, "<answer>b</answer>", STRANGE, "what two labels have in common"),
    (AMBIGUOUS, 4, "<answer>[b]</answer>", STRANGE, "neither of two look-alikes"),
    (NAMED, 2, "<answer>response 2</answer>", SECOND, "a label that holds the word"),
    (NAMED, 2, "<answer>2</answer>", SECOND, "a label without its word"),
    (NAMED, 2, "<answer>Option 2</answer>", SECOND, "a label with another word"),
    (NAMED, 2, "<answer>3</answer>", STRANGE, "a number that was not offered"),
    # --- Choice: prose and markers ------------------------------------------------------------------------------
    (CHOICE, 2, "", NONE, "nothing"),
    (CHOICE, 2, " \n\t", NONE, "white space only"),
    (CHOICE, 2, "\x00\x00", NONE, "NUL bytes only"),
    (CHOICE, 2, "None", NONE, "the word None"),
    (CHOICE, 2, "null", NONE, "the word null"),
    (CHOICE, 2, "A", NONE, "a stray letter"),
    (CHOICE, 2, "This is a tie", NONE, "prose that begins with no label"),
    (CHOICE, 2, "A is better than B.", NONE, "prose with labels"),
    (CHOICE, 2, "Final answer: B", NONE, "another way to mark an answer"),
    (CHOICE, 2, "[[A]]", NONE, "another marker"),
    (CHOICE, 2, '{"answer": "A"}', NONE, "JSON"),
    (CHOICE, 2, "\\boxed{A}", NONE, "boxed"),
    (CHOICE, 2, "<answer>", UNCLOSED, "an opening marker alone"),
    (CHOICE, 2, "</answer>", NONE, "a closing marker alone"),
    (CHOICE, 2, "</answer>A<answer>", UNCLOSED, "markers the wrong way round"),
    (CHOICE, 2, "<answer>A", UNCLOSED, "unclosed answer"),
    (CHOICE, 2, "<answer>A<answer>", UNCLOSED, "opened again for closed"),
    (CHOICE, 2, "<answer>A</ANSWER>", FIRST, "upper-case closing marker"),
    (CHOICE, 2, "<ANSWER>A</ANSWER>", FIRST, "upper-case markers"),
    (CHOICE, 2, "<answer>A</ answer>", UNCLOSED, "closing marker with a space"),
    (CHOICE, 2, "< answer >A</ answer >", NONE, "markers with spaces"),
    (CHOICE, 2, "<ans\u200bwer>A</answer>", NONE, "zero-width space inside the marker"),
    (CHOICE, 2, "<ans\x00wer>A</answer>", NONE, "NUL inside the marker"),
    (CHOICE, 2, "&lt;answer&gt;A&lt;/answer&gt;", NONE, "HTML-escaped markers"),
    (CHOICE, 2, "<answer>A&lt;/answer&gt;", UNCLOSED, "HTML-escaped closing marker"),
    (CHOICE, 2, "\uff1canswer\uff1eA\uff1c/answer\uff1e", NONE, "full-width markers"),
    (CHOICE, 2, "<answer label='A'/>", NONE, "the label as an attribute"),
    # --- thinking -----------------------------------------------------------------------------------------------
    (CHOICE, 2, "<think>A <answer>A</answer>", OPEN, "unclosed thinking"),
    (CHOICE, 2, "<answer>A</answer><think>or B?", OPEN, "thinking again after the verdict"),
    (CHOICE, 2, "<think>x</think><answer>A</answer><think>no", OPEN, "reopened after a closed one"),
    (CHOICE, 2, "<think>x</think><think><answer>A</answer>", OPEN, "reopened before the verdict"),
    (CHOICE, 2, "<think>x</think><answer>A</answer><think>no</think>", NONE, "a verdict thought over is none"),
    (CHOICE, 2, "<think>x</think><think>y</think><answer>B</answer>", SECOND, "two closed sections"),
    (CHOICE, 2, "so A <answer>A</answer></think><answer>B</answer>", SECOND, "the template opened the thinking"),
    (CHOICE, 2, "so A <answer>A</answer></think>", NONE, "closed without opening, and nothing after"),
    (CHOICE, 2, "<think>a<think>b</think>c</think><answer>B</answer>", SECOND, "nested thinking"),
    (CHOICE, 2, "<think>a<think>b</think><answer>B</answer>", SECOND, "the last close ends it all"),
    (CHOICE, 2, "<think>a</think> as it <think>s <answer>B</answer>", OPEN, "a quoted tag counts as thinking"),
    (CHOICE, 2, "<think>a</THINK><answer>B</answer>", SECOND, "upper-case close"),
    (CHOICE, 2, "so <answer>A</answer></Think>", NONE, "capital close after a verdict: it was thinking"),
    (CHOICE, 2, "<THINK>so <answer>A</answer>", OPEN, "upper-case thinking, unclosed"),
    (CHOICE, 2, "<think>so</think", OPEN, "a close that lacks its last character"),
    (CHOICE, 2, "</think><think>", OPEN, "tags the wrong way round"),
    (CHOICE, 2, "<think>a [THINK] or </thinking> <answer>A</answer>", OPEN, "other families' marks close nothing"),
    (CHOICE, 2, "<think>a [THINK] b</think><answer>B</answer>", SECOND, "other families' marks are text inside"),
    (CHOICE, 2, "[THINK]a </think> <answer>A</answer>", OPEN, "a tag quoted inside bracketed reasoning"),
    (CHOICE, 2, "<think>it says `</think>` <answer>A</answer>", OPEN, "a close quoted as code inside"),
    (CHOICE, 2, "<think>a</think> It opens `<think>` twice. <answer>B</answer>", SECOND, "an opening quoted as code"),
    (CHOICE, 2, "analysis: A is rude. <answer>B</answer>", SECOND, "a word that is no channel"),
    (CHOICE, 2, "I am thinking of reasoning. <answer>B</answer>", SECOND, "words that are no marks"),
    (CHOICE, 2, "<thinker>a</thinker><answer>B</answer>", SECOND, "a tag that begins alike"),
    # --- ties ---------------------------------------------------------------------------------------------------
    (TIED, 2, "<answer>C</answer>", TIE, "tie label offered"),
    (TIED, 2, "<answer> C </answer>", TIE, "tie label with spaces"),
    (TIED, 2, "<answer>c</answer>", TIE, "tie label in lower case"),
    (TIED, 2, "<answer>tie</answer>", STRANGE, "a tie in other words"),
    (TIED, 2, "This is a tie", NONE, "a tie in prose"),
    (TIED, 2, "<answer>C</answer><answer>A</answer>", FIRST, "a tie revised"),
    (TIED, 2, "<answer>A</answer><answer>C</answer>", TIE, "revised into a tie"),
    (TIED, 2, "<answer>A</answer><answer>D</answer>", STRANGE, "neither label nor tie"),
    (CHOICE, 2, "<answer>tie</answer>", STRANGE, "tie label not offered"),
    (CHOICE, 2, "<answer>A = B</answer>", STRANGE, "a ranking is not a choice"),
    # --- other markers ------------------------------------------------------------------------------------------
    (BRACKETS, 3, "[[A]] is tempting but wrong. Final: [[C]]", THIRD, "the tempting one comes first"),
    (BRACKETS, 2, "[[A]] is tempting but wrong. Final: [[C]]", STRANGE, "the final one was not offered"),
    (BRACKETS, 2, "[[A]", UNCLOSED, "half a closing marker"),
    (BRACKETS, 2, "[[[A]]]", STRANGE, "a bracket too many"),
    (BRACKETS, 2, "<answer>A</answer>", NONE, "the usual marker where another is set"),
    (BOXED, 2, "$\\boxed{\\text{B}}$", SECOND, "a command in the box"),
    (BOXED, 2, "\\boxed{\\mathbf{\\text{Response B}}}.", SECOND, "two commands and a word in the box"),
    (BOXED, 2, "\\boxed{{B}} \\text{, surely}", SECOND, "braces in the box, and behind it"),
    (BOXED, 2, "\\boxed{A}, no: \\boxed{\\textbf{B}}", SECOND, "boxed, changed midway"),
    (BOXED, 2, "\\boxed{\\text{A} or \\text{B}}", STRANGE, "two labels in the box"),
    (BOXED, 2, "\\boxed{\\text{B}", STRANGE, "a box that lacks its brace"),
    (BOXED, 2, "\\boxed{\\text{not } A}", STRANGE, "negated in the box"),
    (BOXED, 2, "\\boxed{B", UNCLOSED, "a box without a brace"),
    (BOXED_ORDER, 2, "\\boxed{\\text{B} > \\text{A}}", ranked((1,), (0,)), "commands in the box"),
    (LINE, 2, "**Answer: B**", SECOND, "bold around the line"),
    (LINE, 2, "**Answer:** B", SECOND, "bold around the marker"),
    (LINE, 2, "**Answer:** **B**", SECOND, "bold around marker and label"),
    (LINE, 2, "Well:\n> **Final Answer: B.**\nIt cites.", SECOND, "bold around the line, quoted, with a full stop"),
    (LINE, 2, "**Answer: B**.", SECOND, "a full stop behind the bold line"),
    (LINE, 2, "* __Answer:__ Response B", SECOND, "underlines around the marker, in a list"),
    (LINE, 2, "***Answer: `B`***", SECOND, "code in a bold italic line"),
    (LINE, 2, "**_Answer: B_**", SECOND, "two kinds of emphasis around the line"),
    (LINE, 2, "`Answer: B`", SECOND, "code around the line"),
    (LINE, 2, "Answer: **B**", SECOND, "bold around the label of a line"),
    (LINE, 2, "**Answer: A** is what I thought first.\n**Answer: B**", SECOND, "bold, changed midway"),
    (LINE, 2, "Answer: **A\nor B**", STRANGE, "bold that goes on on the next line"),
    (LINE, 2, "**Note.** Answer: B**", STRANGE, "emphasis that was closed before"),
    (LINE, 2, "*Answer: B**", STRANGE, "emphasis that was opened otherwise"),
    (LINE, 2, "**Answer: B** or A", STRANGE, "two labels on a bold line"),
    (LINE, 2, "**Answer: not B**", STRANGE, "negated on a bold line"),
    (LINE, 2, "**Answer:** B, as **it cites**", STRANGE, "prose behind the label of a bold marker"),
    (LINE_ORDER, 2, "**Order: B > A**", ranked((1,), (0,)), "bold around the line"),
    # --- Ranking ------------------------------------------------------------------------------------------------
    (RANKING, 3, "<think>x</think><answer>B > A > C</answer>", ranked((1,), (0,), (2,)), "a full ranking"),
    (RANKING, 3, "<answer>B>A>C</answer>", ranked((1,), (0,), (2,)), "without spaces"),
    (RANKING, 3, "<answer>\nB\n>\nA\n>\nC\n</answer>", ranked((1,), (0,), (2,)), "over several lines"),
    (RANKING, 3, "<answer>B > A = C</answer>", ranked((1,), (0, 2)), "a tie at the bottom"),
    (RANKING, 3, "<answer>C = B > A</answer>", ranked((2, 1), (0,)), "a tie at the top"),
    (RANKING, 3, "<answer>A = B = C</answer>", TIE, "all equal"),
    (RANKING, 2, "<answer>A=B</answer>", TIE, "both equal"),
    (RANKING, 2, "<answer>A > B</answer> No: <answer>B > A</answer>", ranked((1,), (0,)), "changed midway"),
    (RANKING, 2, "<think><answer>A > B</answer></think><answer>B > A</answer>", ranked((1,), (0,)), "spoofed"),
    (RANKING, 2, "<answer>A > B</answer> No: <answer>B</answer>", COUNT, "the last one is short: no falling back"),
    (RANKING, 3, "<answer>B > A</answer>", COUNT, "short"),
    (RANKING, 3, "<answer>B</answer>", COUNT, "the best one only"),
    (RANKING, 3, "<answer>A > B > C > D</answer>", COUNT, "long, with a label not offered"),
    (RANKING, 3, "<answer>A > B > C > A</answer>", COUNT, "long, with a label twice"),
    (RANKING, 3, "<answer>A > B > A</answer>", COUNT, "one twice and one missing"),
    (RANKING, 3, "<answer>A = A > B</answer>", COUNT, "equal to itself"),
    (RANKING, 3, "<answer>A > B > D</answer>", STRANGE, "a label not offered"),
    (RANKING, 3, "<answer>A > > B</answer>", STRANGE, "an empty tier between"),
    (RANKING, 2, "<answer>A > > B</answer>", COUNT, "an empty tier makes it long"),
    (RANKING, 2, "<answer>> A</answer>", STRANGE, "an empty tier first"),
    (RANKING, 3, "<answer>A > B ></answer>", STRANGE, "an empty tier last"),
    (RANKING, 3, "<answer>A == B</answer>", STRANGE, "a doubled sign"),
    (RANKING, 3, "<answer>A >= B > C</answer>", COUNT, "at least as good as"),
    (RANKING, 3, "<answer>A < B < C</answer>", STRANGE, "worst first"),
    (RANKING, 3, "<answer>A, B, C</answer>", ranked((0,), (1,), (2,)), "commas"),
    (RANKING, 3, "<answer>A B C</answer>", STRANGE, "spaces"),
    (RANKING, 3, "<answer>ABC</answer>", STRANGE, "run together"),
    (RANKING, 3, "<answer>1. A\n2. B\n3. C</answer>", STRANGE, "a numbered list"),
    (RANKING, 3, "<answer>b > a > c</answer>", ranked((1,), (0,), (2,)), "lower case"),
    (RANKING, 2, "<answer>**A** > **B**</answer>", ranked((0,), (1,)), "bold"),
    (RANKING, 2, "<answer>Response A > Response B</answer>", ranked((0,), (1,)), "words before the labels"),
    (RANKING, 2, "<answer>A \uff1e B</answer>", STRANGE, "full-width sign"),
    (RANKING, 2, "<answer>A &gt; B</answer>", STRANGE, "HTML-escaped sign"),
    (RANKING, 2, "<answer>\u0410 > B</answer>", STRANGE, "Cyrillic A"),
    (RANKING, 2, "<answer></answer>", STRANGE, "empty"),
    (RANKING, 2, "A > B", NONE, "no marker"),
    (RANKING, 2, "<answer>A > B", UNCLOSED, "unclosed"),
    (RANKING, 2, "<think>A > B <answer>A > B</answer>", OPEN, "unclosed thinking"),
    (RANKING, 2, "<answer>A>>B</answer>", ranked((0,), (1,), "by", (2,)), "a strong step"),
    (RANKING, 2, "<answer>B >>> A</answer>", ranked((1,), (0,), "by", (3,)), "the strongest step"),
    (RANKING, 3, "<answer>C>>A=B</answer>", ranked((2,), (0, 1), "by", (2,)), "a strong step above a tie"),
    (RANKING, 4, "<answer>B>>A>C=D</answer>", ranked((1,), (0,), (2, 3), "by", (2, 1)), "steps of two strengths"),
    (RANKING, 2, "<answer>Response A >> Response B.</answer>", ranked((0,), (1,), "by", (2,)), "graded, with words"),
    (RANKING, 2, "<answer>**A>>B**</answer>", ranked((0,), (1,), "by", (2,)), "graded, bold as a whole"),
    (GRADED, 2, "My final verdict is: [[A>>B]]", ranked((0,), (1,), "by", (2,)), "in the manner of Arena-Hard"),
    (GRADED, 2, "[[A>B]]", ranked((0,), (1,)), "slightly better"),
    (GRADED, 2, "[[A=B]]", TIE, "as good"),
    (GRADED, 2, "[[B>>A]] would be harsh: [[B>A]]", ranked((1,), (0,)), "graded, then toned down"),
    (GRADED, 2, "[[A>>>>B]]", STRANGE, "stronger than there is"),
    (GRADED, 2, "[[A>>A]]", COUNT, "stronger than itself"),
    (GRADED, 2, "[[A>>C]]", STRANGE, "graded, a label not offered"),
    (GRADED, 2, "[[A<<B]]", STRANGE, "graded the wrong way round"),
    (RANKING, 3, "<answer>A>>B</answer>", COUNT, "graded and short"),
    (RANKING, 3, "<answer>(A > B > C)</answer>", ranked((0,), (1,), (2,)), "brackets around all"),
    (RANKING, 2, "<answer>(B) > (A)</answer>", ranked((1,), (0,)), "brackets around each"),
    (RANKING, 3, "<answer>A > B > C.</answer>", ranked((0,), (1,), (2,)), "a full stop"),
    (RANKING, 3, "<answer>Response B, Response A, Response C</answer>", ranked((1,), (0,), (2,)), "commas and words"),
    (RANKING, 3, "<answer>`B`, `A`, `C`.</answer>", ranked((1,), (0,), (2,)), "commas, code and a full stop"),
    (RANKING, 3, "<answer>A, B > C</answer>", STRANGE, "a comma among signs"),
    (RANKING, 3, "<answer>A, B and C</answer>", STRANGE, "a list in words"),
    (RANKING, 3, "<answer>A, B</answer>", STRANGE, "commas, short"),
    (RANKING, 3, "<answer>A, B, B</answer>", COUNT, "commas, one twice"),
    (RANKING, 3, "<answer>A > B or C</answer>", STRANGE, "undecided"),
    (RANKING, 3, "<answer>Neither > A > B</answer>", STRANGE, "a word for a label"),
    # --- PairScores ---------------------------------------------------------------------------------------------
    (PAIR, 2, "<think>x</think><answer>3</answer><answer>8</answer>", scored(3, 8), "one score each"),
    (PAIR, 2, "<answer> 3 </answer>\n\n<answer>10\n</answer>", scored(3, 10), "white space"),
    (PAIR, 2, "A: <answer>3</answer>, B: <answer>3</answer>", scored(3, 3), "prose between; equal scores stay scores"),
    (PAIR, 3, "<answer>1</answer><answer>2</answer><answer>10</answer>", scored(1, 2, 10), "three responses"),
    (PAIR, 2, "<think><answer>9</answer></think><answer>3</answer><answer>8</answer>", scored(3, 8), "spoofed score"),
    (PAIR, 2, "<answer>3</answer>", COUNT, "too few"),
    (PAIR, 2, "<answer>3 8</answer>", COUNT, "both in one marker"),
    (PAIR, 2, "<answer>3</answer><answer>8</answer><answer>5</answer>", COUNT, "too many"),
    (PAIR, 2, "In <answer> and </answer>: <answer>3</answer><answer>8</answer>", COUNT, "the tags are echoed first"),
    (PAIR, 2, "<answer>3</answer><answer>8</answer> Or: <answer>4</answer><answer>8</answer>", COUNT, "said twice"),
    (PAIR, 2, "<answer>3<answer>8</answer>", UNCLOSED, "an earlier score unclosed"),
    (PAIR, 2, "<answer>3<answer>4</answer><answer>8</answer>", UNCLOSED, "one unclosed, one too many"),
    (PAIR, 2, "<answer>3</answer><answer>8", UNCLOSED, "the last score unclosed"),
    (PAIR, 2, "<ANSWER>3</ANSWER><answer>4</answer><answer>8</answer>", COUNT, "an upper-case one too many"),
    (PAIR, 2, "<answer>3</answer><ANSWER>4</ANSWER><answer>8</answer>", COUNT, "upper case in between"),
    (PAIR, 2, "<answer>0</answer><answer>8</answer>", STRANGE, "below the scale"),
    (PAIR, 2, "<answer>3</answer><answer>11</answer>", STRANGE, "above the scale"),
    (PAIR, 2, "<answer>3.5</answer><answer>8</answer>", STRANGE, "between two grades"),
    (PAIR, 2, "<answer>3</answer><answer></answer>", STRANGE, "one empty"),
    (PAIR, 2, "<answer>A: 3</answer><answer>B: 8</answer>", STRANGE, "labels inside"),
    (PAIR, 2, "3 and 8", NONE, "no markers"),
    (PAIR, 2, "<think>x</think>", NONE, "nothing after the thinking"),
    (PAIR, 2, "<think>x <answer>3</answer><answer>8</answer>", OPEN, "unclosed thinking"),
    # --- Score: numbers -----------------------------------------------------------------------------------------
    (SCORE, 1, "<think>x</think><answer>4</answer>", scored(4), "a grade"),
    (SCORE, 1, "<answer>\n 5 </answer>", scored(5), "white space"),
    (SCORE, 1, "<answer>2</answer> No, <answer>4</answer>", scored(4), "changed midway"),
    (SCORE, 1, "<answer>2</answer> No, <answer>9</answer>", STRANGE, "off the scale last: no falling back"),
    (SCORE, 1, "<answer>3.5</answer>", STRANGE, "between two grades"),
    (SCORE, 1, "<answer>4.0</answer>", scored(4), "a decimal"),
    (SCORE, 1, "<answer>04</answer>", STRANGE, "a leading zero"),
    (SCORE, 1, "<answer>11</answer>", STRANGE, "above the scale"),
    (SCORE, 1, "<answer>0</answer>", STRANGE, "below the scale"),
    (SCORE, 1, "<answer>-1</answer>", STRANGE, "negative"),
    (SCORE, 1, "<answer>1e1</answer>", STRANGE, "exponent"),
    (SCORE, 1, "<answer>1e0</answer>", STRANGE, "exponent, on the scale"),
    (SCORE, 1, "<answer>+3</answer>", STRANGE, "plus sign"),
    (SCORE, 1, "<answer>\uff13</answer>", STRANGE, "full-width digit"),
    (SCORE, 1, "<answer>\u0663</answer>", STRANGE, "Arabic-Indic digit"),
    (SCORE, 1, "<answer>\u00b3</answer>", STRANGE, "superscript"),
    (SCORE, 1, "<answer>5/10</answer>", STRANGE, "a fraction"),
    (SCORE, 1, "<answer>4 out of 5</answer>", STRANGE, "out of"),
    (SCORE, 1, "<answer>3-4</answer>", STRANGE, "a range"),
    (SCORE, 1, "<answer>1_0</answer>", STRANGE, "underscore"),
    (SCORE, 1, "<answer>NaN</answer>", STRANGE, "not a number"),
    (SCORE, 1, "<answer>inf</answer>", STRANGE, "infinity"),
    (SCORE, 1, "<answer>four</answer>", STRANGE, "in words"),
    (SCORE, 1, "<answer>IV</answer>", STRANGE, "Roman"),
    (SCORE, 1, "<answer>**4**</answer>", scored(4), "bold"),
    (SCORE, 1, "4", NONE, "no marker"),
    (SCORE, 1, "<answer>4", UNCLOSED, "unclosed"),
    (SCORE, 1, "<think>4 <answer>4</answer>", OPEN, "unclosed thinking"),
    (SCORE, 1, "<answer>4.00</answer>", scored(4), "decimals that say nothing"),
    (SCORE, 1, "<answer>4/5</answer>", scored(4), "of the top"),
    (SCORE, 1, "<answer> 4 / 5 </answer>", scored(4), "of the top, spaced"),
    (SCORE, 1, "<answer>4.0/5.0</answer>", scored(4), "of the top, with decimals"),
    (SCORE, 1, "<answer>(4/5).</answer>", scored(4), "of the top, in brackets, with a full stop"),
    (SCORE, 1, "<answer>\\boxed{4}</answer>", scored(4), "boxed"),
    (SCORE, 1, "<answer>Score: 4</answer>", scored(4), "a word before"),
    (SCORE, 1, "<answer>`4`</answer>", scored(4), "code"),
    (SCORE, 1, "<answer>$4$</answer>", scored(4), "a formula"),
    (SCORE, 1, "<answer>__4__</answer>", scored(4), "underlines"),
    (SCORE, 1, "<answer>\\(4\\)</answer>", scored(4), "an inline formula"),
    (SCORE, 1, "<answer>“4”</answer>", scored(4), "curly quotes"),
    (SCORE, 1, "<answer>4.5</answer>", STRANGE, "half a grade"),
    (SCORE, 1, "<answer>4.0000000001</answer>", STRANGE, "nearly a grade"),
    (SCORE, 1, "<answer>9/5</answer>", STRANGE, "more than the top, of the top"),
    (SCORE, 1, "<answer>4/6</answer>", STRANGE, "of another top"),
    (SCORE, 1, "<answer>4/5/5</answer>", STRANGE, "a fraction too many"),
    (SCORE, 1, "<answer>4,5</answer>", STRANGE, "a comma"),
    (SCORE, 1, "<answer>Response 4</answer>", STRANGE, "a number of a response"),
    (SCORE, 1, "<answer>4..</answer>", STRANGE, "it trails off"),
    (SCORE, 1, "<answer>not 4</answer>", STRANGE, "negated"),
    (SCORE, 1, "<answer>4 or 5</answer>", STRANGE, "two grades"),
    (SCORE, 1, "<answer>4%</answer>", STRANGE, "a percentage"),
    (PAIR, 2, "<answer>8/10</answer><answer>**7.0**</answer>", scored(8, 7), "of the top, and bold"),
    (PAIR, 2, "<ANSWER>8</ANSWER><Answer>7</Answer>", scored(8, 7), "markers in two cases"),
    (PAIR, 2, "<answer>8/5</answer><answer>7</answer>", STRANGE, "of another top"),
    # --- an answer that runs to the end of its line -------------------------------------------------------------
    (SENTIMENT, 1, "Sentiment: positive", scored(1), "a word to the end of the text"),
    (SENTIMENT, 1, "Sentiment:negative\n", scored(0), "no space, a line"),
    (SENTIMENT, 1, "Sentiment: negative\r\nIt is gloomy.", scored(0), "prose on the next line"),
    (SENTIMENT, 1, "<think>Sentiment: negative</think>Sentiment: positive", scored(1), "spoofed in the thinking"),
    (SENTIMENT, 1, "Sentiment: negative\nSentiment: positive", scored(1), "changed midway"),
    (SENTIMENT, 1, "Sentiment: negative\nSentiment: mixed", STRANGE, "off-menu last: no falling back"),
    (SENTIMENT, 1, "Sentiment: negative\nSentiment:", STRANGE, "empty last: no falling back"),
    (SENTIMENT, 1, "Sentiment: negative\nSENTIMENT: positive", CARELESS, "last in another case: no falling back"),
    (SENTIMENT, 1, "Sentiment:\npositive", STRANGE, "the word on the next line"),
    (SENTIMENT, 1, "Sentiment: positive, mostly", STRANGE, "more on the line"),
    (SENTIMENT, 1, "Sentiment: Positive", scored(1), "a capital"),
    (SENTIMENT, 1, "Sentiment: positive.", scored(1), "a full stop"),
    (SENTIMENT, 1, "Sentiment: not positive", STRANGE, "negated"),
    (SENTIMENT, 1, "Sentiment: positive\u2028", scored(1), "a Unicode line end is white space"),
    (SENTIMENT, 1, "positive", NONE, "no marker"),
    (SENTIMENT, 1, "sentiment: positive", NONE, "marker in lower case"),
    (SENTIMENT, 1, "<think>Sentiment: positive", OPEN, "unclosed thinking"),
    (SENTIMENT, 1, "", NONE, "nothing"),
]


@pytest.mark.parametrize(
    ("format", "slots", "text", "expected"),
    [pytest.param(*row[:4], id=f"{type(row[0]).__name__}: {row[4]}") for row in TABLE],
)
def test_a_judge_output_means_what_the_table_says(format: Format, slots, text, expected):
    assert told(format.parse(text, slots)) == expected


def test_the_table_gives_every_row_a_reason_of_its_own():
    assert len(TABLE) >= 100
    assert len({(format, reason) for format, _, _, _, reason in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("format", "slots", "text", "expected"), [row[:4] for row in TABLE])
def test_a_reply_that_ran_into_its_cap_has_no_verdict_whatever_it_says(format: Format, slots, text, expected):
    verdict = read_reply(format, Reply(text, finish="length", usage=Usage(7, 0, 5)), slots)
    assert verdict.outcome == NoVerdict("truncated", "after 5 tokens")
    assert verdict.failed
    assert (verdict.rationale, verdict.usage) == (text, Usage(7, 0, 5))


@pytest.mark.parametrize(("format", "slots", "text", "expected"), [row[:4] for row in TABLE])
def test_reasoning_before_a_judge_output_changes_no_verdict(format: Format, slots, text, expected):
    spoof = "<answer>A</answer> <answer>B > A</answer> Sentiment: negative [[A]] </think>"
    if "think" not in text.lower():
        assert told(format.parse(spoof + text, slots)) == expected


def test_a_complete_reply_keeps_its_text_and_its_cost():
    verdict = read_reply(CHOICE, Reply("<think>\nso B</think><answer>B</answer>", usage=Usage(7, 2, 5)), 2)
    assert verdict.outcome == Preference((0.0, 1.0))
    assert verdict.rationale == "<think>\nso B</think><answer>B</answer>"
    assert verdict.usage == Usage(7, 2, 5)


@pytest.mark.parametrize(
    ("prefill", "text", "expected"),
    [
        ("<think>\n", "B. <answer>B</answer>", OPEN),  # the thinking opened for the judge was never closed
        ("<think>\nshort</think>\n<answer>", "B</answer>", SECOND),  # the answer opened for the judge
        ("<think>\nshort</think>\n<answer>", "B", UNCLOSED),
        ("<think>\nshort</think>\n<answer>", "", UNCLOSED),
    ],
)
def test_a_prefill_is_part_of_what_the_judge_wrote(prefill, text, expected):
    assert told(read_reply(CHOICE, Reply(prefill + text), 2).outcome) == expected


def test_a_failed_verdict_says_what_was_seen_and_stays_short():
    assert CHOICE.parse("<answer>C</answer>", 2).detail == "'C' is none of A, B"
    assert len(CHOICE.parse(f"<answer>{'x' * 10**6}</answer>", 2).detail) < 100
    assert len(SCORE.parse(f"<answer>{'9' * 10**6}</answer>", 1).detail) < 100
    assert "3 scores for 2" in PAIR.parse("<answer>1</answer>" * 3, 2).detail


def test_what_follows_the_thinking_is_returned_as_it_stands():
    assert after_thinking("<think>a</think> b ") == " b "
    assert after_thinking("no tags") == "no tags"
    assert after_thinking("<think>") == NoVerdict("unclosed thinking")


MARKS = [
    ("<think>", "</think>"), ("<Think>", "</THINK>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"), ("<reflection>", "</reflection>"), ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"), ("<mm:think>", "</mm:think>"), ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"), ("<|channel>thought\n", "<channel|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final <|constrain|>x<|message|>"),  # noqa: E501
    ("analysis", "assistantfinal"),
]  # fmt: skip


@pytest.mark.parametrize(("opened", "closed"), MARKS, ids=[opened for opened, _ in MARKS])
def test_a_verdict_inside_reasoning_never_counts_whatever_marks_it(opened, closed):
    mention = "The form is <answer>A</answer>; A is rude, "
    assert told(CHOICE.parse(f"{opened}{mention}{closed}<answer>B</answer>", 2)) == SECOND
    assert told(CHOICE.parse(f"{opened}{mention}{closed}I cannot decide.", 2)) == NONE
    assert told(CHOICE.parse(f"{opened}{mention}", 2)) == OPEN
    if opened != "analysis":  # a word, unless it comes first
        assert told(CHOICE.parse(f"{opened}{closed}<answer>B</answer>{opened}or not?", 2)) == OPEN
    if "channel|" not in closed and closed != "assistantfinal":
        assert told(CHOICE.parse(f"{mention}{closed}<answer>B</answer>", 2)) == SECOND, "the template opened it"
    for other, end in MARKS:
        if other.lower() != opened.lower() and "channel|>" not in other + opened:
            assert told(CHOICE.parse(f"{opened}{mention}{end} {mention}", 2)) == OPEN, f"{end} is text inside {opened}"


@pytest.mark.parametrize(("opened", "closed"), MARKS, ids=[opened for opened, _ in MARKS])
def test_a_policy_is_judged_by_what_follows_its_reasoning(opened, closed):
    assert final_answer(f"{opened}I will praise myself.{closed}Hello") == "Hello"
    assert final_answer(f"{opened}I will praise myself.") == ""
    if opened != "analysis":  # which no template opens
        assert final_answer(f"I will praise myself.{closed}Hello", opened=True) == "Hello"
    assert final_answer("I will praise myself.", opened=True) == ""


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("R1 writes `<think>` first.", "R1 writes `<think>` first."),
        ("<think>a</think>Use `text.split('</think>')`.", "Use `text.split('</think>')`."),
        ("```\n<think>\n```\nopens it.", "```\n<think>\n```\nopens it."),
        ("<think>so ``` is a fence</think>Hello `x`", "Hello `x`"),
        ("Hello <think>or not", "Hello"),
        ("<|channel|>final<|message|>Hello<|return|>", "Hello"),
        ("<|start_thinking|>a<|end_thinking|><|START_RESPONSE|>Hello<|END_RESPONSE|>", "Hello"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>", ""),
    ],
)
def test_marks_shown_as_code_are_part_of_a_policys_answer(written, answer):
    assert final_answer(written) == answer


WORDS = st.sampled_from([" or ", " and ", " not ", "\\boxed{", "."])
NOISE = WORDS | st.text(" \n.,;:*`\"'“”()[]{}$\\>=?!-/", max_size=4)


@given(st.lists(NOISE, min_size=3, max_size=3), st.permutations(["A", "B"]), st.data())
def test_a_text_that_names_two_labels_is_no_choice(noise, names, data):
    first, second = (data.draw(st.sampled_from([n, n.lower(), f"Response {n}", f"({n})", f"**{n}**"])) for n in names)
    said = f"{noise[0]}{first}{noise[1]}{second}{noise[2]}"
    assert isinstance(CHOICE.parse(f"<answer>{said}</answer>", 2), NoVerdict)


@given(st.text("AB12ab ./*_`\"'()[]{}$\\:>=,", max_size=12))
def test_what_is_read_names_its_label_and_no_other(said):
    for format in (CHOICE, Choice(labels=("1", "2")), Choice(labels=("A", "a", "(A)", "B"))):
        outcome = format.parse(f"<answer>{said}</answer>", 2)
        if isinstance(outcome, Preference):
            letters = [letter for letter in said if letter.isalnum()]
            assert "".join(letters).lower() == format.labels[outcome.probabilities_K.index(1.0)].strip("()").lower()


MEGABYTE = 1_000_000
HUGE = {
    "a megabyte of prose": "word " * (MEGABYTE // 5),
    "5 MB of opening markers": "<answer>" * (5 * MEGABYTE // 8),
    "5 MB of closing markers": "</answer>" * (5 * MEGABYTE // 9),
    "5 MB of empty answers": "<answer></answer>" * (5 * MEGABYTE // 17),
    "5 MB of half markers": "<answer" * (5 * MEGABYTE // 7),
    "5 MB of opened thinking": "<think>" * (5 * MEGABYTE // 7),
    "5 MB of closed thinking": "</think>" * (5 * MEGABYTE // 8),
    "2 MB of thinking in pairs": "<think></think>" * (2 * MEGABYTE // 15),
    "5 MB of angle brackets": "<" * (5 * MEGABYTE),
    "5 MB of one answer": "<answer>" + "A" * (5 * MEGABYTE) + "</answer>",
    "5 MB of one ranking": "<answer>" + "A > " * (5 * MEGABYTE // 4) + "</answer>",
    "5 MB of empty tiers": "<answer>" + ">" * (5 * MEGABYTE) + "</answer>",
    "5 MB of equals": "<answer>" + "=" * (5 * MEGABYTE) + "</answer>",
    "5 MB of white space in an answer": "<answer>" + " " * (5 * MEGABYTE) + "</answer>",
    "a megabyte of NUL": "\x00" * MEGABYTE,
    "5 MB of lines": "Sentiment:\n" * (5 * MEGABYTE // 11),
    "5 MB of emphasis before and behind": "*" * (2 * MEGABYTE) + "Sentiment:" + "* " * (MEGABYTE * 3 // 2),
    "2 MB of emphasis of all lengths": " ".join("*" * n for n in range(2000)) + "Sentiment:" + "* ** " * 10,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE.keys())
@pytest.mark.parametrize("format", [CHOICE, RANKING, PAIR, SCORE, SENTIMENT], ids=lambda f: f"{type(f).__name__}")
def test_a_huge_output_fails_in_well_under_a_second(format: Format, text):
    began = time.thread_time()
    outcome = format.parse(text, format.min_slots)
    assert time.thread_time() - began < 1.0
    assert isinstance(outcome, NoVerdict)


def test_a_verdict_after_megabytes_of_thinking_is_found():
    thinking = "<answer>A</answer> <think> Sentiment: negative\n" * 50_000
    began = time.thread_time()
    assert told(CHOICE.parse(f"{thinking}</think><answer>B</answer>", 2)) == SECOND
    assert told(PAIR.parse(f"{thinking}</think><answer>1</answer><answer>2</answer>", 2)) == scored(1, 2)
    assert time.thread_time() - began < 1.0


LABELS = tuple("ABC")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Choice(labels=()), "at least 2"),
        (lambda: Choice(labels=("A",)), "at least 2"),
        (lambda: Choice(labels=("A",), tie_label="C"), "at least 2"),
        (lambda: Choice(labels=("A", "A")), "different"),
        (lambda: Choice(labels=("A", " A")), "different"),
        (lambda: Choice(labels=("A", "")), "non-empty"),
        (lambda: Choice(labels=("A", "B", " ")), "non-empty"),
        (lambda: Choice(labels=LABELS, tie_label="C"), "different"),
        (lambda: Choice(tie_label=" "), "non-empty"),
        (lambda: Choice(answer_open=""), "answer_open"),
        (lambda: Choice(answer_open=" \n"), "answer_open"),
        (lambda: Choice(answer_open="**", answer_close="**"), "answer_open"),
        (lambda: Choice(answer_open="answer>", answer_close="</answer>"), "answer_open"),
        (lambda: Choice(labels=("<answer>", "B")), "no label may hold"),
        (lambda: Choice(labels=("A", "B</answer>")), "no label may hold"),
        (lambda: Choice(tie_label="</answer>"), "no label may hold"),
        (lambda: Choice(labels=("A\n1", "B"), answer_close=""), "newline"),
        (lambda: Choice(template="no such"), "no such"),
        (lambda: Ranking(labels=("A",)), "at least 2"),
        (lambda: Ranking(labels=("A", "A")), "different"),
        (lambda: Ranking(labels=("A>", "B")), "> or ="),
        (lambda: Ranking(labels=("A", "B=")), "> or ="),
        (lambda: Ranking(answer_open=""), "answer_open"),
        (lambda: Ranking(template="no such"), "no such"),
        (lambda: PairScores(labels=("A",)), "at least 2"),
        (lambda: PairScores(grades=()), "at least 2"),
        (lambda: PairScores(grades=(("1", 1.0), ("1 ", 2.0))), "different"),
        (lambda: PairScores(grades=(("1", 1.0), ("2", float("nan")))), "finite"),
        (lambda: PairScores(answer_open=""), "answer_open"),
        (lambda: PairScores(template="no such"), "no such"),
        (lambda: Score(grades=(("1", 1.0),)), "at least 2"),
        (lambda: Score(grades=(("1", 1.0), ("1", 2.0))), "different"),
        (lambda: Score(grades=(("1", 1.0), ("", 2.0))), "non-empty"),
        (lambda: Score(grades=(("1", 1.0), ("2", float("inf")))), "finite"),
        (lambda: Score(grades=(("1", 1.0), ("</answer>", 2.0))), "no label may hold"),
        (lambda: Score(answer_open=""), "answer_open"),
        (lambda: Score(template="no such"), "no such"),
    ],
)
def test_a_format_that_could_not_work_is_refused_with_what_is_wrong(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_the_scale_of_grades_is_inclusive():
    assert grade_scale(1, 3) == (("1", 1.0), ("2", 2.0), ("3", 3.0))
    assert PAIR.grades == grade_scale(1, 10)
    assert SCORE.grades == grade_scale(1, 5)


def test_each_format_knows_how_many_candidates_it_shows():
    assert [(f.min_slots, f.max_slots) for f in (CHOICE, RANKING, PAIR)] == [(2, 16)] * 3
    assert (SCORE.min_slots, SCORE.max_slots) == (1, 1)
    assert Choice(labels=LABELS).max_slots == 3


def test_only_single_verdicts_can_be_read():
    assert [f.readable for f in (CHOICE, RANKING, PAIR, SCORE, SENTIMENT)] == [True, False, False, True, True]
    for format in (RANKING, PAIR):
        with pytest.raises(ConfigError, match="cannot be read"):
            format.read_labels(2)
        with pytest.raises(ConfigError, match="cannot be read"):
            format.from_logprobs((0.0, 0.0), 2)
    assert TIED.read_labels(2) == ("A", "B", "C")
    assert SENTIMENT.read_labels(1) == (" negative", " positive")


@pytest.mark.parametrize(
    ("said", "labels", "best"),
    [
        ("<answer>A</answer>", "ABC", 0), ("<answer>Response C</answer>", "ABC", 2), ("<answer> **b** </answer>", "ABC", 1),
        ("<think>7, 9</think><answer>[B].</answer>", "ABC", 1), ("<ANSWER>A</ANSWER>", "ABC", 0),
        ("<answer>D</answer>", "ABC", None), ("<answer>A or B</answer>", "ABC", None),
        ("<answer>not A</answer>", "ABC", None), ("<answer>7</answer>", "ABC", None), ("<answer>2</answer>", "123", None),
        ("<answer>A</answer><answer>B</answer>", "ABC", None),
        ("<answer>A</answer><answer>7</answer><answer>8</answer>", "ABC", None), ("<answer>11</answer>", "ABC", None),
        ("<answer></answer>", "ABC", None), ("<think>so <answer>A</answer>", "ABC", None),
    ],
)  # fmt: skip
def test_who_names_the_best_instead_of_grading_has_a_verdict_unless_it_could_be_a_grade(
    said: str, labels: str, best: int | None
) -> None:
    outcome = PairScores(labels=tuple(labels)).parse(said, 3)
    if best is None:
        assert isinstance(outcome, NoVerdict)
    else:
        assert outcome == Preference(tuple(float(slot == best) for slot in range(3)))
