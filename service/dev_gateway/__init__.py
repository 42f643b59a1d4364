"""A laptop's API Gateway: an emulator, and the service behind it with one command."""
