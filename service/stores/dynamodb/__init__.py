"""DynamoDB store: one table that several servers share."""
