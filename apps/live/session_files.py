"""The SAEs and adapters that a live session may use, and having the resident worker load them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from apps.core.errors import Refused
from apps.live.resident_client import ResidentClient
from apps.live.services import Paths, SaePath
from microscope.params import EditPlan


class SessionFiles:
    """What the project of a session has for the model, read from the database when a prompt is opened.

    The connection to the worker is shared with other projects, so what the worker has in memory is not
    yet what this session may use.
    """

    def __init__(self, read: Callable[[], Awaitable[Paths]]) -> None:
        self._read, self._paths = read, Paths({}, {})

    async def refresh(self) -> None:
        """Read them anew."""
        self._paths = await self._read()

    def are_attached(self, client: ResidentClient, plan: EditPlan) -> bool:
        """Whether the worker has all the plan names, and this project may use it."""
        saes = client.attached & self._paths.saes.keys()
        adapters = client.attached_adapters & self._paths.adapters.keys()
        return plan.saes() <= saes and plan.adapters() <= adapters

    async def attach(self, client: ResidentClient, plan: EditPlan) -> None:
        """Have the worker load what the plan names.

        Raises:
            MicroscopeError: ``unknown_sae``, ``unknown_adapter``, ``feature_out_of_range``, or what the
                worker says.
            ResidentLost: the worker died.
        """
        for fingerprint in plan.saes():
            await self.attach_sae(client, fingerprint)
        for fingerprint in plan.adapters():
            await client.attach_adapter(fingerprint, await self._adapter(fingerprint))
        self.check_features(plan)

    async def attach_sae(self, client: ResidentClient, fingerprint: str) -> None:
        """Have the worker load an SAE; raises what :meth:`attach` raises."""
        await client.attach(fingerprint, (await self.sae(fingerprint)).path)

    async def sae(self, fingerprint: str) -> SaePath:
        """The SAE, from what was read at opening or, if it is newer than that, from the database.

        Raises:
            Refused: ``unknown_sae``.
        """
        if fingerprint not in self._paths.saes:
            await self.refresh()
        found = self._paths.saes.get(fingerprint)
        if found is None:
            raise Refused(
                "unknown_sae",
                "This project has no such SAE for this model.",
                "Use the fingerprint of one of its SAEs.",
            )
        return found

    def name_of(self, fingerprint: str) -> str:
        """What people call an SAE that was looked up; its fingerprint where they do not any more."""
        found = self._paths.saes.get(fingerprint)
        return fingerprint if found is None else found.name

    async def _adapter(self, fingerprint: str) -> str:
        if fingerprint not in self._paths.adapters:
            await self.refresh()
        found = self._paths.adapters.get(fingerprint)
        if found is None:
            raise Refused(
                "unknown_adapter",
                "This project has no such adapter for this model.",
                "Import the adapter first.",
            )
        return found

    def check_features(self, plan: EditPlan) -> None:
        """Raises :class:`Refused` ``feature_out_of_range``."""
        for number, edit in enumerate(plan.edits, 1):
            sae = self._paths.saes.get(edit.sae_needed)
            if sae is not None and edit.index >= sae.width:
                raise Refused(
                    "feature_out_of_range",
                    f"Edit {number} names feature {edit.index} of {sae.width}.",
                )
