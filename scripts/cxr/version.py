"""The version of this code, named here only; CHANGELOG.md says what each one brought."""

# A release is tagged `v` + VERSION; `.dev0` says that it is still being made.
VERSION = "0.2.dev0"
