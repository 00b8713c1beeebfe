"""The embedded emoji data: archives of drawings, their tables and contact sheets. Import the submodules."""
