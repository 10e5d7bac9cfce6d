"""What an attack is expected to reach in a cell, before it runs."""

from __future__ import annotations

from benchmark.base.errors import first_line
from benchmark.diagnosis import diagnose
from benchmark.experiment.scene import Scene
from benchmark.outlook import Outlook, combined, unknown
from benchmark.plugins import Attack


def expectation(scene: Scene) -> Outlook | None:
    """Return the outlook of the cell's attack for all its updates together; None for a control.

    An attack without a rule costs no diagnosis. An error in a diagnosis or in a rule is the reason of an unknown outlook.
    """
    attack = scene.cell.attack
    if attack is None or attack.control:
        return None
    if type(attack).outlook is Attack.outlook:
        return unknown("the attack states no rule")
    observations = scene.observations  # an error of a client is the cell's own, not the diagnosis's
    try:
        return combined([attack.outlook(diagnose(observation), scene.cell.success_db) for observation in observations])
    except Exception as error:
        return unknown(f"the diagnosis failed: {type(error).__name__}: {first_line(error)}")
