"""Real federations: certificates, the server's SuperLink, a client's trainer and SuperNode."""
