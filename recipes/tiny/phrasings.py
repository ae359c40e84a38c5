"""How people ask about things in a picture. The last of each list is kept out of training.

{p} is a picture; {t} a thing with its article ("a red circle"), {n} without ("red circle"),
{s} its plural; {a} and {b} two things without articles; {k} a kind without its article.
"""

from __future__ import annotations

NAME = (
    "What is in this {p}?",
    "What is in the {p}?",
    "What's in this {p}?",
    "What do you see?",
    "What can you see in the {p}?",
    "What do you see in this {p}?",
    "What does this {p} show?",
    "What does the {p} show?",
    "What is shown here?",
    "What things are in the {p}?",
    "What objects can you see?",
    "Tell me what you see.",
    "What is this?",
    "What's this?",
    "what is it",
    "What is this a {p} of?",
    "Name what is in the {p}.",
    "Which objects does the {p} contain?",
    "List the things in this {p}.",
    "",
    "What am I looking at?",
)
DESCRIBE = (
    "Describe this {p}.",
    "Describe the {p}.",
    "Describe this {p} in one sentence.",
    "Describe the {p} briefly.",
    "Write a caption for this {p}.",
    "Caption this {p}.",
    "Give a short description of this {p}.",
    "Can you describe this {p}?",
    "Put this {p} into words.",
)
DETAIL = (
    "Describe this {p} in detail.",
    "Describe everything you see.",
    "Give a detailed description of the {p}.",
    "What is where in this {p}?",
    "Describe the {p} with places and colours.",
    "Tell me everything about this {p}.",
    "Say in detail what the {p} shows.",
)
IS_THERE = (
    "Is there {t} in the {p}?",
    "Is there {t} in this {p}?",
    "Is there {t}?",
    "Is {t} present?",
    "Is {t} in the {p}?",
    "Do you see {t}?",
    "Can you see {t}?",
    "Can you see {t} in the {p}?",
    "Does the {p} contain {t}?",
    "Does the {p} show {t}?",
    "Does this {p} contain {t}?",
    "Does this {p} have {t} in it?",
    "Are there any {s}?",
    "Are there any {s} in the {p}?",
    "Are any {s} shown here?",
    "Is there {t} anywhere in the {p}?",
    "Is any {n} visible?",
)
IS_THERE_NOT = (
    "Is there no {n} in the {p}?",
    "Is there not {t} in the {p}?",
    "Does the {p} not contain {t}?",
    "Does the {p} not show {t}?",
    "Is no {n} present?",
    "Is {t} not present?",
    "Is {t} missing from the {p}?",
    "Is there no {n}?",
    "Is the {p} without {t}?",
)
COLOUR = (
    "What colour is the {n}?",
    "What is the colour of the {n}?",
    "Which colour is the {n}?",
    "What colour does the {n} have?",
    "What colour is the {n} in the {p}?",
    "Tell me the colour of the {n}.",
    "the {n}, what colour is it?",
    "In which colour is the {n} drawn?",
)
COLOUR_OF_IT = (
    "What colour is it?",
    "What colour is this?",
    "And what colour is it?",
    "Which colour is shown?",
    "What colour does it have?",
    "What colour is present?",
    "What is its colour?",
)
IS_COLOUR = (
    "Is the {n} {c}?",
    "Is the {n} in the {p} {c}?",
    "Is {c} the colour of the {n}?",
    "Does the {n} look {c}?",
)
MATERIAL = (
    "What is the {n} made of?",
    "What material is the {n}?",
    "Which material is the {n} made of?",
)
WHICH_IS = (
    "What is the {c} thing?",
    "Which thing is {c}?",
    "What thing in the {p} is {c}?",
    "What is {c} in this {p}?",
    "Which object is {c}?",
    "What {c} thing can you see?",
)
WHAT_KIND = (
    "What {k} is in the {p}?",
    "What {k} is this?",
    "Which {k} is in the {p}?",
    "What {k} does the {p} contain?",
    "What {k} does the {p} show?",
    "What {k} is present?",
    "What {k} do you see?",
    "What kind of {k} is there?",
    "Which {k} can you see?",
)
COUNT = (
    "How many {s} are there?",
    "How many {s} are in the {p}?",
    "How many {s} do you see?",
    "How many {s} can you see?",
    "How many {s} are in this {p}?",
    "How many {s} does the {p} show?",
    "Count the {s}.",
    "What is the number of {s}?",
    "How many {s} does the {p} contain?",
)
COUNT_ALL = (
    "How many things are there?",
    "How many objects are in the {p}?",
    "How many things do you see?",
    "How many objects are there?",
    "Count the things in the {p}.",
    "Count the objects.",
    "How many things are in this {p}?",
    "How many items does the {p} show?",
)
SIZE = (
    "How big is the {n}?",
    "What size is the {n}?",
    "Is the {n} big or small?",
    "How large is the {n} in the {p}?",
)
WHERE = (
    "Where is the {n}?",
    "Where is the {n} in the {p}?",
    "Where in the {p} is the {n}?",
    "In which part of the {p} is the {n}?",
    "What is the position of the {n}?",
    "Whereabouts is the {n}?",
)
IS_RELATED = (
    "Is the {a} {r} the {b}?",
    "Is the {a} {r} the {b} in the {p}?",
    "Is the {a} found {r} the {b}?",
    "Can the {a} be seen {r} the {b}?",
    "In this {p}, is the {a} {r} the {b}?",
    "Does the {a} stand {r} the {b}?",
)
# What is asked, by axis: x and y.
WHICH_SIDE = (
    (
        "Is the {a} to the left or to the right of the {b}?",
        "Is the {a} left or right of the {b}?",
        "On which side of the {b} is the {a}?",
        "Where is the {a}, left or right of the {b}?",
    ),
    (
        "Is the {a} above or below the {b}?",
        "Is the {a} over or under the {b}?",
        "Is the {a} higher or lower than the {b}?",
        "Where is the {a}, above or below the {b}?",
    ),
)
WHERE_FROM = (
    "Where is the {a} relative to the {b}?",
    "Where is the {a} compared to the {b}?",
    "How does the {a} stand to the {b}?",
)
# Of two things, by axis; {r} is what `MORE` says.
WHICH_OF_TWO = (
    "Which is {r}, the {a} or the {b}?",
    "Which of the two is {r}, the {a} or the {b}?",
    "Is it the {a} or the {b} that is {r}?",
    "What is {r}, the {a} or the {b}?",
    "The {a} or the {b}: which thing is {r}?",
)
MORE = (
    (("on the left", "more to the left", "farther left"), ("on the right", "more to the right")),
    (("higher", "on top", "farther up"), ("lower", "farther down", "nearer the bottom")),
)
NEIGHBOURS = (
    "What is {r} the {b}?",
    "What can you see {r} the {b}?",
    "Which thing is {r} the {b}?",
    "What stands {r} the {b}?",
)
AT_THE_EDGE = (
    "What is {e}?",
    "What is {e} of the {p}?",
    "Which thing is {e}?",
    "What can you see {e}?",
    "What stands {e}?",
)
READ = (
    "What does it say?",
    "Read the text.",
    "What word is this?",
    "What is written here?",
    "What does the text say?",
    "What is the word?",
    "Which word is in the {p}?",
    "What text is in the {p}?",
    "Can you read this?",
    "Read the word.",
    "What word does the {p} show?",
    "What does the {p} say?",
)
HIGHEST = (
    "What is the highest value?",
    "What is the highest value in the chart?",
    "What is the maximum?",
    "How high is the tallest bar?",
    "What is the largest value shown?",
    "What is the biggest value in this {p}?",
    "What is the top value of the chart?",
)
SORT = (
    "What kind of picture is this?",
    "What kind of image is this?",
    "What sort of picture is it?",
    "Is this a photo or a drawing?",
    "What type of image is this?",
)
IN_ONE_WORD = (
    " Answer in one word.",
    " One word only.",
    " In one word.",
    " Answer with a single word.",
    " Use one word.",
)
