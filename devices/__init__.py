"""Device cards (YAML data); the code that reads them is `hwsim.device.card`."""
