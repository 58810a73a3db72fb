"""`redrive check`: whether settings, database and RabbitMQ are as Redrive needs them."""
