"""The connection registry that several processes share in a DynamoDB table."""
