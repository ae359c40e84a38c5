"""What the tests of pictures share: a TLS server and the authority behind its certificate."""

from __future__ import annotations

import pytest
from picture_server import PictureServer, authority, pictures, trusting

__all__ = ["authority", "pictures", "server", "trusting"]


@pytest.fixture
def server(pictures: PictureServer) -> PictureServer:
    return pictures
