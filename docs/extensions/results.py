"""What was measured, on a page: the tables of `benchmarks/results`, and the figures of the reliability suite in words.

```{results} loop-cpu.md
```
"""

import json
import pathlib

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
SAID = {
    "R1": "{kills} `kill -9` in {runs} runs, and as many resumes: {bitwise_equal} of {runs} ended with the bits of the "
    "run nobody killed",
    "R2": "{kills_at_random_times} kills while a checkpoint was written, at any of {crash_points} points: "
    "{bad_steps_believed} bad steps believed, {durable_steps_lost} saved steps lost",
    "R3": "{corruptions:,} damaged checkpoints: {silent} read in silence, {fell_back} passed over for the one before",
    "R3 exported file": "{corruptions} damaged files of weights: {refused} refused",
    "R4": "{inputs:,} mistaken calls of {families} kinds: {silent} went through in silence, {unnamed} without naming "
    "the argument",
    "R5": "{cycles} full disks: {said} said so, {older_restored} times the checkpoint before was there",
    "R6": "{pairs} pairs of runs in one directory: {exactly_one_went_on} times exactly one went on",
    "R7": "{signals} signals: {most_steps_lost} steps lost by any, the slowest exit took {slowest_exit_s} s",
    "R9": "{sequences} sequences of {saves:,} saves: {best_deleted} times the best was deleted, {latest_deleted} times "
    "the newest",
    "R10": "{positions:,} places in the data to go on from: {different} differed",
    "R13": "{exits} ways and moments to end a process: {saves_lost} saves lost, {hangs} hung",
    "R15": "{steps:,} steps with {saves} saves in one process: {resident_growth:.1%} more memory, no more files",
}
"""What each figure of the suite says; a figure that the suite no longer keeps is an error of the build."""


class Results(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = RESULTS / self.arguments[0]
        self.env.note_dependency(str(path))
        text = path.read_text()
        if path.suffix == ".json":
            found = json.loads(text)
            machine = "On {cores} cores, Python {python}, JAX {jax}.".format(
                **found["machine"]
            )
            text = "\n".join(
                [
                    *(
                        f"- {words.format(**found[key])}."
                        for key, words in SAID.items()
                    ),
                    "",
                    machine,
                ]
            )
        elif not text.startswith("# "):  # a table without its title
            text = f"# {path.stem.removesuffix('-cpu').capitalize()}\n\n{text}"
        deeper = "\n".join(
            "#" + line if line.startswith("#") else line for line in text.splitlines()
        )
        return self.parse_text_to_nodes(deeper, allow_section_headings=True)


def setup(app):
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
