"""Where guests run, behind the `Sandbox` port."""
