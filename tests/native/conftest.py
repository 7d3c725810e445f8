"""An agent, and a client that has prepared it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.client import Client
from tests.native.agent import Agent


@pytest.fixture
def agent(program: Path, tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(program, tmp_path / "agent.log")
    yield agent
    agent.stop()


@pytest.fixture
def client(agent: Agent) -> Client:
    return agent.prepared()
