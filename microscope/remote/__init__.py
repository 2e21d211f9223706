"""A small typed client of the portal: submit jobs, follow them, bring files in and out.

    from microscope.remote import Workbench

    with Workbench("https://lab.example.org", token="…") as lab:
        job = lab.train(recording="…", name="first", params={"layer": 15, "k": [32]})
        lab.follow(job.id)

It needs neither torch nor Django.
"""

from microscope.remote.client import Workbench
from microscope.remote.records import Artifact, Item, Job

__all__ = ["Artifact", "Item", "Job", "Workbench"]
