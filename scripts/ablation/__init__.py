"""The paper's claims put to the test: what to run, how, and what came of it."""
